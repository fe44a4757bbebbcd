//! byre-stats
