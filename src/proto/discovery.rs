//! Discovery: DUDP_START asks a server "from where do you see me", DUDP_PUBINFO answers.
pub mod server;
