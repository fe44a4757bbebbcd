//! byre-net
