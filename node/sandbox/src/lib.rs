//! byre-sandbox
