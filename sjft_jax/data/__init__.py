"""Image sets, their preprocessing and the batches made of them."""
