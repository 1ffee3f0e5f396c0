//! The generated protocol, package `formid.v1`. Generated types stop at each service's `service.rs`.

#![allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic)]

tonic::include_proto!("formid.v1");

/// The compiled protos, for the reflection services.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
