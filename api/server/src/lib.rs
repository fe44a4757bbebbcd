//! byre-api-server
