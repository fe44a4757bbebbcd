//! byre-config
