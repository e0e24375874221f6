"""Every setting and its default: the paper's, at full size.

  python -m sjft_jax.main --config=configs/default.py --workdir=DIR \
      --config.target.train=DIR --config.target.test=DIR \
      --config.source.main.dir=DIR --config.model.weights=FILE

But for the bank (gabor needs no weights), the views of evaluation and the cap
on K, for which see configs/paper/. Smaller problems start from
configs/folders.py. For torchvision's or timm's weights add
--config.model.variant=v1.5.
"""

from ml_collections import ConfigDict


def source(**fields):
  """One source data set: its own classes, its own folder."""
  return ConfigDict(
    # quota: images drawn of it, evenly over its classes; 0 = all. use: False
    # leaves it out, for an arm of a comparison.
    dict(kind='folder', name='', dir='', split='train', quota=0, use=True)
    | fields
  )


def get_config():
  c = ConfigDict()
  c.seed = 0
  c.threads = 0  # decoding threads; 0 = one per processor it may use
  c.processes = ConfigDict()  # with --multihost; seconds
  c.processes.heartbeat = 40  # without a sign of life a process is dead
  c.processes.shutdown = 60  # that one who is done waits for the others
  # To wait for the others at the start: the hosts of a pod, or the pods of a
  # job, come minutes apart.
  c.processes.connect = 300
  c.max_bad_fraction = 0.01  # more unreadable images than this end the run

  # What is learnt, and from what. kind: folder (a directory, an archive or a
  # csv), packaged or tfds.
  c.target = ConfigDict()
  c.target.kind = 'folder'
  c.target.name = ''  # of a packaged or TFDS data set
  c.target.dir = ''  # TFDS data_dir
  c.target.train = ''  # folder: DIR/class/image; TFDS: split
  c.target.test = ''  # '' = what per_class leaves, or the share held_out
  c.target.per_class = 0  # training images drawn of each class; 0 = all
  c.target.held_out = 0.0  # share of each class drawn for test, where test = ''
  c.target.folds = 0  # parts of the training images, one of which is the test
  c.target.fold = 0  # which of them, from 0; test images are then not opened
  c.source = ConfigDict(dict(main=source()))

  # Source images that repeat target test images are withheld: pictures whose
  # fingerprints' product is above `screen` are compared, and are the same if
  # the correlation of their fine detail is above `confirm`.
  c.guard = ConfigDict()
  c.guard.enabled = True
  c.guard.withhold_train = False  # also those that repeat training images
  c.guard.screen = 0.7
  c.guard.confirm = 0.75
  c.guard.cache = ''  # hash tables; '' = (XDG_CACHE_HOME or ~/.cache)/sjft_jax

  # Low-level descriptors.
  c.describe = ConfigDict()
  c.describe.bank = 'gabor'  # gabor or conv
  c.describe.resize = 0  # pixels; 0 = as the bank's filters were made for
  c.describe.crop = 0  # pixels; 0 = as the bank's filters were made for
  c.describe.bins = 32  # per channel; the release: 32 Gabor, 100 AlexNet
  c.describe.binning = 'paper'  # paper (bins of equal mass) or caffe
  c.describe.reduced = False  # decode JPEGs at 1/2 to 1/8, if that is enough
  c.describe.batch = 32  # images at least; whole groups on every device
  c.describe.decimate = False  # gabor: coarse scales at fewer points
  c.describe.weights = ''  # conv: a file written by sjft_jax.convert
  c.describe.layers = ()  # () = AlexNet's conv1, conv2; SqueezeNet's conv1
  c.describe.activation = 'after'  # conv: before or after the nonlinearity

  c.describe.fine_bins = 0  # keep the source in so many bins for all targets
  c.describe.edges = ''  # edges.npz of another run; '' = of the target

  # The search; none of these changes a neighbour.
  c.search = ConfigDict()
  c.search.cache = ''  # directory that keeps histograms for later searches
  # Devices of a process that share the targets, where one cannot hold them all;
  # must divide their number.
  c.search.target_parts = 1
  c.search.rank = -1  # directions of its screen; 0 = none, -1 = chosen
  c.search.operands = 'auto'  # of its screen: float32, bfloat16 or auto

  # Selection: K images of the source for every target image.
  # neighbours; or, to be compared with: features (nearest by the pooled feature
  # of model.weights), labelled (what the images of a class have in common),
  # classes (whole source classes), random (as many images), all, none.
  c.selection = 'neighbours'
  c.budget = ConfigDict()
  c.budget.initial = 100  # K0
  c.budget.maximum = 1000  # cap on K
  c.budget.depth = 0  # of the search, if deeper than budget.maximum
  c.budget.images = 0  # N, distinct source images in all; 0 = as K has it
  c.budget.least_per_class = 1  # source classes with fewer images are dropped
  c.hardness = ConfigDict()
  c.hardness.add_wrong = 4.0  # s0, in units of K0
  c.hardness.add_unsure = 2.0  # s1, in units of K0
  c.hardness.min_entropy = 0.1  # d, nats
  c.hardness.views = 'centre'  # of a training image: centre, ten or dense

  # Selected source images whose label the network and their neighbours doubt
  # are listed, never removed.
  c.suspects = ConfigDict()
  c.suspects.neighbours = 10  # asked about an image; 0 = no list

  # The network.
  c.model = ConfigDict()
  # resnet26, 50, 101, 152; bit_r50, 101, 152; squeezenet_v1_0, alexnet_caffe,
  # alexnet_torchvision.
  c.model.trunk = 'resnet152'
  c.model.width = 1.0  # 0.5 = half the kernels per layer
  c.model.stem = 'imagenet'  # imagenet (7x7/2, pool), strided or small (3x3)
  c.model.variant = 'caffe'  # caffe (identity mappings) or v1.5 (torchvision)
  c.model.momentum = 0.999  # of batch norm's running averages
  # Which images enter those averages: target, source or both. The network is
  # trained on what both have in common: of the demo's three first seeds 93 %
  # are right with both, 18 % with the target's and 30 % with the source's.
  # A distilled network has those of all its images.
  c.model.averages = 'both'
  # Whose images give batch norm's statistics of a micro-batch: 'global', all of
  # it, so that the number of devices changes nothing; 'device', each device's.
  c.model.statistics = 'global'
  c.model.remat = False  # for accelerators; on CPUs slower, and saves nothing
  c.model.dtype = 'float32'  # of the arithmetic: float32 or bfloat16
  c.model.weights = ''  # pretrained trunk, safetensors; '' = none

  # Pretraining on the whole source, before the first round.
  c.pretrain = ConfigDict()
  c.pretrain.seed = 0
  c.pretrain.steps = 0  # updates; 0 = no pretraining
  c.pretrain.batch = 64  # source images per update
  c.pretrain.learning_rate = 0.05
  c.pretrain.warmup = 20  # updates; then a cosine to zero
  c.pretrain.weight_decay = 1e-4

  # Training of one round.
  c.rounds = 5  # 0 = selection alone
  c.end_when_settled = False  # no more rounds once no K changes
  c.fusion = True  # also average the rounds' class probabilities
  c.weight_fusion = False  # also average the rounds' weights
  # After the last round one network is trained towards their average, which
  # `predict` then uses. It begins as the last round's.
  c.distill = ConfigDict()
  c.distill.steps = 0  # updates; 0 = no such network; needs two rounds
  c.distill.temperature = 2.0  # of the answers it learns
  c.distill.source = True  # also on the selected source images, without labels
  c.train = ConfigDict()
  c.train.steps = 4000  # updates per round
  c.train.micro_batches = 10  # per update
  c.train.target_batch = 10  # images per micro-batch
  c.train.source_batch = 10  # images per micro-batch
  c.train.by_hardness = False  # K / K0 times as often, as the release
  c.train.most_per_label = 0  # in the target half; the release: 2; 0 = any
  c.train.resize = 256  # pixels
  c.train.crop = 224  # pixels
  c.train.mirror = True
  c.train.target_weight = 1.0  # of its cross-entropy
  c.train.source_weight = 1.0
  c.train.label_smoothing = 0.0  # part of a label spread over all classes
  c.train.checkpoint_every = 500  # updates; 0 = only after the last
  c.train.sharded = False  # parameters and optimiser split over the devices
  c.optim = ConfigDict()
  c.optim.rule = 'sgd'  # sgd (Caffe's) or adamw
  c.optim.learning_rate = 0.01
  c.optim.round_factors = (1.0,)  # of the rate, per round; the last one stays
  c.optim.schedule = 'step'  # step or cosine
  c.optim.boundaries = (2400,)  # step: updates of the round at which it drops
  c.optim.factor = 0.1
  c.optim.warmup = 0  # cosine: updates of the round
  c.optim.momentum = 0.9
  c.optim.weight_decay = 1e-4
  c.optim.to_start = False  # L2-SP: the trunk decays to where it began
  # Parameters that stay: 'trunk/res2_*'. Batch norm goes on there as elsewhere.
  c.optim.frozen = ()
  c.evaluate = ConfigDict()
  c.evaluate.batch = 64  # images
  c.evaluate.views = 'centre'  # of a test image: centre, ten (crops) or dense
  c.evaluate.scales = (1.0, 1.5, 2.0)  # dense: of train.resize

  # A comparison: every arm with every seed. No arms = one run. An arm is
  # {title: '', set: {setting: value}}, or, without runs of its own, {title: '',
  # average: (arm, ...)}: the mean of the class probabilities of their last
  # rounds, with all_rounds=True of all, with distilled=True of what those were
  # distilled into. `published`, in per cent, is shown too.
  c.arms = ConfigDict()
  # Of the table; the first is what the others are compared with. () = by name.
  c.order = ()
  c.seeds = 0  # seeds 0..n-1 of the draws and of training
  # Rate and length of every arm are chosen, on folds of the training images;
  # also K0, bank and the source's weight, where values are named. What an arm
  # sets itself stays. An arm's own `tune` goes before this one.
  c.tune = ConfigDict()
  c.tune.folds = 0  # 0 = not tuned
  c.tune.learning_rates = ()  # tried at the first of the lengths
  c.tune.steps = ()  # lengths: updates of all rounds together
  c.tune.initial = ()  # K0; budget.maximum follows in proportion
  c.tune.banks = ConfigDict()  # {name: {setting of describe: value}}
  c.tune.source_weights = ()  # falling, as (1.0, 0.3, 0.1, 0.0); 0 = no source
  return c
