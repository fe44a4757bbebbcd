//! byre-state
