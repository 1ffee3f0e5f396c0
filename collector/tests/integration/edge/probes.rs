//! The port for probes.

use std::net::SocketAddr;

use testing::{Redis, eventually, free_port, tls::Authority};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;

/// The health status of a service name, asked on a port without TLS.
async fn health(address: SocketAddr, service: &str) -> Option<ServingStatus> {
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.ok()?;
    let request = HealthCheckRequest { service: service.into() };
    HealthClient::new(channel).check(request).await.ok().map(|answer| answer.into_inner().status())
}

#[tokio::test]
async fn probes_need_no_tls_and_liveness_ignores_redis() {
    let mut redis = Redis::start();
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("ours"));
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (path("cert"), path("key"), path("ca"));
    authority.server().write(cert.as_ref(), key.as_ref());
    std::fs::write(&ca, &authority.pem).unwrap();
    let probe = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let listen = probe.to_string();
    let flags = ["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca, "--probe-listen", &listen];
    let collector = Collector::start(&redis, &flags).await;
    for service in ["", "formid.v1.CollectorService", "liveness"] {
        eventually("it serves", SOON, async || health(probe, service).await == Some(ServingStatus::Serving)).await;
    }
    assert_eq!(health(collector.address(), "liveness").await, None, "plaintext on the port for calls");
    // The port serves nothing but health.
    let channel = connect(probe).await;
    let status = testing::called(channel, "/formid.v1.CollectorService/Collect", tonic::Request::new(())).await;
    assert_eq!(status.unwrap_err().code(), tonic::Code::Unimplemented);

    redis.kill();
    eventually("health shows NOT_SERVING", SOON, async || health(probe, "").await == Some(ServingStatus::NotServing))
        .await;
    assert_eq!(health(probe, "liveness").await, Some(ServingStatus::Serving));
    assert_eq!(health(probe, "formid.v1.CollectorService").await, Some(ServingStatus::NotServing));
    collector.stop().await.unwrap().unwrap();
    assert_eq!(health(probe, "liveness").await, None);
}

#[tokio::test]
async fn liveness_is_answered_on_the_port_for_calls_too() {
    let mut redis = Redis::start();
    redis.kill();
    let collector = Collector::start(&redis, &[]).await;
    assert_eq!(health(collector.address(), "liveness").await, Some(ServingStatus::Serving));
    assert_eq!(health(collector.address(), "").await, Some(ServingStatus::NotServing));
}
