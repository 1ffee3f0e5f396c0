//! A Redis Cluster of three masters with a replica each.

use std::time::Duration;

use crate::server::{Server, start_on_free_ports, wait};
use crate::tls::Authority;

/// The hash slots of each master.
const SLOTS: [&str; 3] = ["0-5460", "5461-10922", "10923-16383"];

/// Starts a cluster. A node that does not answer for `node_timeout` counts as failed. This takes about 0.2 s.
///
/// The nodes know each other from their `nodes.conf`. A master that has just started serves no commands for two
/// seconds, but a replica does, so the replicas take over immediately.
pub(crate) fn start(settings: &[String], node_timeout: Duration, authority: Option<&Authority>) -> Vec<Server> {
    let servers = start_on_free_ports(|ports: [u16; 18]| {
        let (ports, more) = ports.split_at(6);
        let (buses, tls_ports) = more.split_at(6);
        let timeout = node_timeout.as_millis().to_string();
        let node = |node: usize| {
            let bus = buses[node].to_string();
            let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", &timeout];
            // The nodes use TLS among themselves if their clients do.
            let encrypted = if authority.is_some() { "yes" } else { "no" };
            let rest = ["--repl-diskless-sync-delay", "0", "--tls-cluster", encrypted, "--tls-replication", encrypted];
            let arguments = cluster.iter().chain(&rest).map(ToString::to_string);
            let server = Server::new(ports[node], arguments.chain(settings.iter().cloned()).collect());
            server.write("nodes.conf", &nodes(node, if authority.is_some() { tls_ports } else { ports }, buses));
            match authority {
                Some(authority) => server.encrypted(tls_ports[node], authority),
                None => server,
            }
        };
        (0..6).map(node).collect()
    });
    wait("all nodes are connected to each other", || {
        servers.iter().all(|server| server.ask(&["CLUSTER NODES"]).matches(" connected").count() == 6)
    });
    for (replica, epoch) in servers[3..].iter().zip(4..) {
        replica.ask(&["CLUSTER FAILOVER TAKEOVER"]);
        // All nodes must know this epoch, so that the next takeover does not claim the same one.
        let epoch = format!("cluster_current_epoch:{epoch}\r\n");
        wait("all nodes know the new epoch", || {
            servers.iter().all(|server| server.ask(&["CLUSTER INFO"]).contains(&epoch))
        });
    }
    wait("the cluster is ready", || servers.iter().all(is_ready));
    wait("every master has a replica", || {
        servers[..3].iter().all(|server| server.ask(&["INFO replication"]).contains("master_link_status:up"))
    });
    servers
}

/// Whether a node knows three masters and serves its slots.
pub(crate) fn is_ready(server: &Server) -> bool {
    let info = server.ask(&["CLUSTER INFO"]);
    info.contains("cluster_state:ok") && info.contains("cluster_size:3")
}

/// The `nodes.conf` of a node: what it knows of all nodes.
fn nodes(me: usize, ports: &[u16], buses: &[u16]) -> String {
    let line = |node: usize| {
        let (myself, shard) = (if node == me { "myself," } else { "" }, node % 3);
        let (role, slots) = if node < 3 {
            (format!("{myself}master -"), SLOTS[shard])
        } else {
            (format!("{myself}slave {:040x}", shard + 1), "")
        };
        let (port, bus) = (ports[node], buses[node]);
        format!("{:040x} 127.0.0.1:{port}@{bus} {role} 0 0 {} connected {slots}\n", node + 1, shard + 1)
    };
    (0..6).map(line).chain(["vars currentEpoch 3 lastVoteEpoch 0\n".to_owned()]).collect()
}
