//! The generated protocol, package `formid.v1`. Generated types are used only in each service's rpc module.

#![allow(unused_qualifications, clippy::all)]

use domain::Kind;

tonic::include_proto!("formid.v1");

impl From<Kind> for CredentialKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::FormId => Self::FormId,
            Kind::PrepayId => Self::PrepayId,
            Kind::Grant => Self::Grant,
        }
    }
}

/// The compiled descriptors of the protos, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
