//! byre-spec
