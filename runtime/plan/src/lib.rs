//! byre-plan
