//! byre-launch
