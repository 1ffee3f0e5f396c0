//! The permissions that each RPC needs, as a table. A test walks the descriptors of both services and fails if an RPC
//! has no row.

use super::permission::Permission;
use super::permission::Permission::{Broadcast, Collect, Erase, Operate, Read, Send};

/// One RPC and the permissions that it needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    pub path: &'static str,
    /// The caller needs at least one of these permissions.
    pub needs: &'static [Permission],
    /// Whether the RPC is a stream. Streams have their own concurrency limit.
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
/// The RPCs that only read broadcasts are open to `broadcast`, because a caller that starts a broadcast must be able to
/// follow it. They are also open to `read` alone, so that a dashboard or a person on call can watch without the right
/// to send. Stops likewise: `read` can list them, and lifting needs `operate`. A broadcast to every reachable user also needs [`Permission::BroadcastAll`]; only the request shows that,
/// so it is not in this table.
pub static METHODS: [Method; 19] = [
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
    unary("/formid.v1.DispatcherService/ListStops", &[Read, Operate]),
    unary("/formid.v1.DispatcherService/LiftStop", &[Operate]),
];

/// Health checks come from load balancers and similar clients, which have no token.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Reflection reveals only what the protos say, so any authenticated caller may use it.
const REFLECTION: &str = "/grpc.reflection.";

/// The access rule of a path.
#[derive(Debug, PartialEq, Eq)]
pub enum MethodAccess {
    /// Health checks: no authentication, never rejected.
    Open,
    /// Reflection: any authenticated caller. It is a stream.
    Reflection,
    Method(&'static Method),
    /// No such RPC. Only authenticated callers get this answer.
    Nothing,
}

pub fn method_access(path: &str) -> MethodAccess {
    match METHODS.iter().find(|method| method.path == path) {
        Some(method) => MethodAccess::Method(method),
        None if path.starts_with(HEALTH) => MethodAccess::Open,
        None if path.starts_with(REFLECTION) => MethodAccess::Reflection,
        None => MethodAccess::Nothing,
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
    fn table_and_descriptors_list_the_same_rpcs() {
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
        assert_eq!(rows.len(), METHODS.len(), "the table has a path twice");
        assert!(METHODS.iter().all(|row| !row.needs.is_empty()));
    }

    #[test]
    fn only_health_needs_no_authentication() {
        assert_eq!(method_access("/grpc.health.v1.Health/Check"), MethodAccess::Open);
        assert_eq!(
            method_access("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
            MethodAccess::Reflection
        );
        for path in ["", "/", "/formid.v1.CollectorService/Steal", "/grpc.health.v1.HealthX/Check"] {
            assert_eq!(method_access(path), MethodAccess::Nothing, "{path}");
        }
        assert!(METHODS.iter().all(|row| method_access(row.path) == MethodAccess::Method(row)));
    }
}
