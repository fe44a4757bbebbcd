//! byre-tests
