"""What is said of the computer, and how much of it is ours."""

import importlib.metadata
import os

import jax

from sjft_jax import machine


def test_a_part_of_the_processors_is_all_that_a_job_counts(monkeypatch):
  part = {1, 3, 5}
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: part, raising=False)
  assert machine.cores() == 3


def test_a_machine_is_told_from_others_by_device_and_libraries():
  value = machine.described()
  device = jax.local_devices()[0]
  assert (value['platform'], value['device']) == ('cpu', device.device_kind)
  assert isinstance(value['processor'], str)
  assert value['jaxlib'] == importlib.metadata.version('jaxlib')


def test_its_words_say_nothing_twice_and_leave_out_what_is_not_known():
  value = {'platform': 'cpu', 'device': 'cpu', 'processor': '', 'numpy': '2.1'}
  assert machine.words(value) == 'cpu, numpy 2.1'
