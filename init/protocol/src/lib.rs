//! byre-protocol
