//! byre-verity
