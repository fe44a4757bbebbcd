//! byre-api
