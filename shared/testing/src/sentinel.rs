//! A Redis master with a replica, monitored by three Sentinels.

use std::time::Duration;

use crate::server::{Server, start_on_free_ports, wait};

/// The name of the master in the Sentinels.
pub(crate) const MASTER: &str = "mymaster";

/// Starts a master, a replica and three Sentinels, in this order. A Sentinel considers the master down when it is
/// silent for `down_after`. Two of them have to agree.
pub(crate) fn start(settings: &[String], down_after: Duration) -> Vec<Server> {
    let servers = start_on_free_ports(|ports: [u16; 5]| {
        let arguments = |more: &[&str]| {
            let usual = ["--repl-diskless-sync-delay", "0"].iter().chain(more).map(ToString::to_string);
            usual.chain(settings.iter().cloned()).collect()
        };
        let mut servers = vec![
            Server::new(ports[0], arguments(&[])),
            Server::new(ports[1], arguments(&["--replicaof", &format!("127.0.0.1 {}", ports[0])])),
        ];
        for me in 2..5 {
            let server = Server::new(ports[me], vec!["sentinel.conf".into(), "--sentinel".into()]);
            server.write("sentinel.conf", &sentinel(me, &ports, down_after));
            servers.push(server);
        }
        servers
    });
    wait("the replica is connected", || servers[1].ask(&["INFO replication"]).contains("master_link_status:up"));
    for sentinel in &servers[2..] {
        wait("the Sentinels know each other", || {
            sentinel.ask(&[&format!("SENTINEL CKQUORUM {MASTER}")]).starts_with("+OK 3")
        });
    }
    servers
}

/// The configuration of a Sentinel. It names the other Sentinels, because their discovery takes seconds.
fn sentinel(me: usize, ports: &[u16], down_after: Duration) -> String {
    let mut lines = vec![
        format!("sentinel myid {me:040x}"),
        format!("sentinel monitor {MASTER} 127.0.0.1 {} 2", ports[0]),
        format!("sentinel down-after-milliseconds {MASTER} {}", down_after.as_millis()),
        format!("sentinel failover-timeout {MASTER} 5000"),
        format!("sentinel known-replica {MASTER} 127.0.0.1 {}", ports[1]),
    ];
    for other in (2..5).filter(|other| *other != me) {
        lines.push(format!("sentinel known-sentinel {MASTER} 127.0.0.1 {} {other:040x}", ports[other]));
    }
    lines.push(String::new());
    lines.join("\n")
}
