//! What each RPC needs, as a table. A test walks the descriptors of both services: an RPC without a row does not pass.

use super::permission::Permission;
use super::permission::Permission::{Broadcast, Collect, Erase, Read, Send};

/// What one RPC needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    /// Its path as gRPC has it.
    pub path: &'static str,
    /// Any one of these permissions is enough.
    pub needs: &'static [Permission],
    /// Whether it lives long, as streams do, and is counted with them.
    pub stream: bool,
}

const fn unary(path: &'static str, needs: &'static [Permission]) -> Method {
    Method { path, needs, stream: false }
}

const fn stream(path: &'static str, needs: &'static [Permission]) -> Method {
    Method { path, needs, stream: true }
}

/// Every RPC of both services.
///
/// What only looks at broadcasts is open to `broadcast`, since whoever starts one has to see how it goes, and to `read`
/// alone, so that a dashboard or a person on call can watch without being able to send anything. Broadcast to everybody
/// needs [`Permission::BroadcastAll`] besides, which only its request tells.
pub static METHODS: [Method; 17] = [
    unary("/formid.v1.CollectorService/Collect", &[Collect]),
    stream("/formid.v1.CollectorService/CollectStream", &[Collect]),
    unary("/formid.v1.CollectorService/ReportEvents", &[Collect]),
    unary("/formid.v1.CollectorService/GetInventory", &[Read]),
    unary("/formid.v1.CollectorService/GetStock", &[Read]),
    unary("/formid.v1.CollectorService/EraseUser", &[Erase]),
    unary("/formid.v1.DispatcherService/SendTemplate", &[Send]),
    unary("/formid.v1.DispatcherService/Broadcast", &[Broadcast]),
    unary("/formid.v1.DispatcherService/AddRecipients", &[Broadcast]),
    unary("/formid.v1.DispatcherService/StartBroadcast", &[Broadcast]),
    unary("/formid.v1.DispatcherService/PauseBroadcast", &[Broadcast]),
    unary("/formid.v1.DispatcherService/ResumeBroadcast", &[Broadcast]),
    unary("/formid.v1.DispatcherService/CancelBroadcast", &[Broadcast]),
    unary("/formid.v1.DispatcherService/GetBroadcast", &[Read, Broadcast]),
    unary("/formid.v1.DispatcherService/ListBroadcasts", &[Read, Broadcast]),
    unary("/formid.v1.DispatcherService/ListUndelivered", &[Read, Broadcast]),
    stream("/formid.v1.DispatcherService/WatchBroadcast", &[Read, Broadcast]),
];

/// Health is asked by load balancers and the like, which have no token.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Reflection tells what the protos tell, so any caller will do.
const REFLECTION: &str = "/grpc.reflection.";

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Door {
    /// Health: nobody has to say who they are, and it is never turned away.
    Open,
    /// Reflection: any caller, and it is a stream.
    Reflection,
    /// An RPC of the table.
    Method(&'static Method),
    /// Nothing that is served. Only callers learn so.
    Nothing,
}

/// Whether a path is of health.
pub(crate) fn is_health(path: &str) -> bool {
    path.starts_with(HEALTH)
}

/// What the path of a call asks for.
pub fn door(path: &str) -> Door {
    match METHODS.iter().find(|method| method.path == path) {
        Some(method) => Door::Method(method),
        None if is_health(path) => Door::Open,
        None if path.starts_with(REFLECTION) => Door::Reflection,
        None => Door::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::proto::DESCRIPTORS;

    #[test]
    fn every_rpc_of_both_services_has_a_row_and_every_row_an_rpc() {
        let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap().file;
        let mut described = BTreeMap::new();
        for file in &files {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    described.insert(path, method.client_streaming() || method.server_streaming());
                }
            }
        }
        let rows: BTreeMap<_, _> = METHODS.iter().map(|row| (row.path.to_owned(), row.stream)).collect();
        assert_eq!(rows, described);
        assert_eq!(rows.len(), METHODS.len(), "a path stands there twice");
        assert!(METHODS.iter().all(|row| !row.needs.is_empty()));
    }

    #[test]
    fn only_health_is_open_to_everybody() {
        assert_eq!(door("/grpc.health.v1.Health/Check"), Door::Open);
        assert_eq!(door("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"), Door::Reflection);
        for path in ["", "/", "/formid.v1.CollectorService/Steal", "/grpc.health.v1.HealthX/Check"] {
            assert_eq!(door(path), Door::Nothing, "{path}");
        }
        assert!(METHODS.iter().all(|row| door(row.path) == Door::Method(row)));
    }
}
