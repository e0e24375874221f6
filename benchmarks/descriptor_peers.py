"""What a user would compose of other libraries to describe images.

Run by benchmarks.descriptors, with an interpreter that has the libraries; needs
nothing of this project. Reads a case (.npz), then lines from standard input:
`run` describes all images of the case once and prints the seconds, any other
line prints the peak memory of the process in GiB and ends.

Kernels reach three sigma, as usual, which is cheaper than what the project
computes; histograms are sorted values and a search of the edges among them
(NumPy), or a bin per value and a count (torch).
"""

import sys
import time

import numpy as np


def main(name, path):
  """Serves one peer."""
  with np.load(path, allow_pickle=False) as case:
    describe = PEERS[name](dict(case))
    images = case['image']
  describe(images[:1])
  print('ready', flush=True)
  for line in sys.stdin:
    if line.strip() != 'run':
      break
    start = time.perf_counter()
    describe(images)
    print(time.perf_counter() - start, flush=True)
  print(peak_memory(), flush=True)


def peak_memory():
  """GiB of this process; getrusage would count its parent's, too."""
  with open('/proc/self/status', encoding='ascii') as file:
    for line in file:
      if line.startswith('VmHWM'):
        return int(line.split()[1]) / 2**20
  return float('nan')


def _grey(image_nhwc):
  return image_nhwc.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])


def _scales(case):
  """(kernels complex64 [o, taps, taps], radius) of every scale."""
  names = sorted(k for k in case if k.startswith('kernel'))
  return [(case[k], case[k].shape[-1] // 2) for k in names]


def _sorted_counts(value_cp, edges_cb):
  ranked = np.sort(value_cp, axis=1)
  below = [np.searchsorted(r, e) for r, e in zip(ranked, edges_cb, strict=True)]
  ends = np.full((len(below), 1), value_cp.shape[1])
  return np.diff(np.concatenate([below, ends], axis=1), axis=1, prepend=0)


def scipy(case):
  """FFTs of SciPy in two threads, real and imaginary part from one."""
  import scipy.fft as fft

  spectra = None

  def describe(image_nhwc):
    nonlocal spectra
    grey_nhw = _grey(image_nhwc)
    _, height, width = grey_nhw.shape
    if spectra is None:
      spectra = []
      for kernel, r in _scales(case):
        shape = [fft.next_fast_len(n + 2 * r) for n in (height, width)]
        spectra.append((fft.fft2(kernel, shape).astype(np.complex64), r))
    for grey in grey_nhw:
      parts = []
      for spectrum, r in spectra:
        padded = np.pad(grey, r, 'symmetric')
        image = fft.fft2(padded, spectrum.shape[1:], workers=2)
        full = fft.ifft2(image * spectrum, workers=2)
        kept = full[:, 2 * r : 2 * r + height, 2 * r : 2 * r + width]
        parts += [kept.real, kept.imag]
      value = np.concatenate([p.reshape(len(p), -1) for p in parts])
      _sorted_counts(value, case['edges'])

  return describe


def opencv(case):
  """cv2.filter2D, which turns to FFTs for large kernels."""
  import cv2

  def describe(image_nhwc):
    for grey in _grey(image_nhwc):
      value = [
        cv2.filter2D(grey, -1, part, borderType=cv2.BORDER_REFLECT)
        for kernel, _ in _scales(case)
        for one in kernel
        for part in (one.real, one.imag)
      ]
      value = np.stack(value).reshape(len(value), -1)
      _sorted_counts(value, case['edges'])

  return describe


def skimage(case):
  """skimage.filters.gabor, whose kernels are its own; of one image."""
  from skimage.filters import gabor

  def describe(image_nhwc):
    grey = _grey(image_nhwc[:1])[0]
    value = [
      part.ravel()
      for scale in range(4)
      for o in range(6)
      for part in gabor(grey, 0.05 * 2**scale, theta=np.pi * o / 6, n_stds=3)
    ]
    for one, edges in zip(value, case['edges'], strict=True):
      np.histogram(one, np.concatenate([[-np.inf], edges, [np.inf]]))

  return describe


def _torch_counts(value_np, edges_cb, torch):
  """value [n, c, p], edges [c, b - 1]."""
  n, c, _ = value_np.shape
  bins = edges_cb.shape[1] + 1
  index = torch.stack(
    [
      torch.bucketize(value_np[:, i].contiguous(), edges_cb[i], right=True)
      for i in range(c)
    ],
    dim=1,
  )
  offset = bins * torch.arange(n * c).reshape(n, c, 1)
  return torch.bincount((index + offset).ravel(), minlength=n * c * bins)


def torch(case):
  """FFTs of torch, torch.bucketize and torch.bincount."""
  import torch

  edges = torch.from_numpy(case['edges'])
  spectra = None

  def describe(image_nhwc):
    nonlocal spectra
    grey = torch.from_numpy(_grey(image_nhwc))[:, None]
    height, width = grey.shape[2:]
    if spectra is None:
      spectra = []
      for kernel, r in _scales(case):
        shape = [height + 2 * r, width + 2 * r]
        spectra.append((torch.fft.fft2(torch.from_numpy(kernel), shape), r))
    for one in grey.split(1):
      parts = []
      for spectrum, r in spectra:
        # Half-sample symmetric, which torch.nn.functional.pad lacks.
        padded = torch.from_numpy(np.pad(one[0, 0].numpy(), r, 'symmetric'))
        full = torch.fft.ifft2(torch.fft.fft2(padded)[None] * spectrum)
        kept = full[:, 2 * r : 2 * r + height, 2 * r : 2 * r + width]
        parts += [kept.real, kept.imag]
      value = torch.cat(parts).reshape(1, -1, height * width)
      _torch_counts(value, edges, torch)

  return describe


def torch_alexnet(case):
  """Caffe's AlexNet up to conv2 in torch, with bucketize and bincount."""
  import torch
  from torch.nn import functional

  array = {k: torch.from_numpy(v) for k, v in case.items() if k != 'image'}
  mean = torch.tensor([104.0, 116.67, 122.68])[None, :, None, None]

  @torch.inference_mode()
  def describe(image_nhwc):
    x = torch.from_numpy(np.ascontiguousarray(image_nhwc[..., ::-1]))
    x = x.permute(0, 3, 1, 2).float() - mean
    first = functional.conv2d(x, array['w1'], array['b1'], stride=4).relu()
    x = functional.local_response_norm(first, 5)
    x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
    second = functional.conv2d(
      x, array['w2'], array['b2'], padding=2, groups=2
    ).relu()
    _torch_counts(first.flatten(2), array['edges1'], torch)
    _torch_counts(second.flatten(2), array['edges2'], torch)

  return describe


PEERS = {
  'scipy': scipy,
  'opencv': opencv,
  'skimage': skimage,
  'torch': torch,
  'torch_alexnet': torch_alexnet,
}

if __name__ == '__main__':
  main(*sys.argv[1:])
