//! The gRPC server around the handlers of both services. It knows neither Redis nor WeChat.
//!
//! - [`config`]: the flags that both services have; [`listen`]: the addresses that they name;
//! - [`serve`]: the life of a service: connections, admission, health, reflection and the drain;
//! - [`auth`]: who may call which method;
//! - [`rpc`]: errors as a caller sees them, bad fields of a request, deadlines; [`proto`]: the generated protocol;
//! - [`telemetry`]: logs, metrics and traces;
//! - [`reload`]: files that are read again while a service runs.

pub mod auth;
pub mod config;
pub mod listen;
pub mod proto;
pub mod reload;
pub mod rpc;
pub mod serve;
pub mod telemetry;
