"""Search: which head reads how far, found instead of chosen."""
