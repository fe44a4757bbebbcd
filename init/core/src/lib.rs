//! byre-core
