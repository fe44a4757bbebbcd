//! byre-log
