//! The connection of the tests to a Redis of any kind.

use deadpool_redis::redis::aio::{ConnectionLike, MultiplexedConnection};
use deadpool_redis::redis::cluster::ClusterClientBuilder;
use deadpool_redis::redis::cluster_async::ClusterConnection;
use deadpool_redis::redis::{self, Cmd, Pipeline, RedisFuture, Value};
use testing::Redis;

#[derive(Clone)]
pub enum Raw {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Raw {
    pub async fn to(redis: &mut Redis) -> Self {
        let url = redis.url();
        if let Some(nodes) = url.strip_prefix("redis-cluster://") {
            let nodes = nodes.split(',').map(|node| format!("redis://{node}"));
            return Self::Cluster(
                ClusterClientBuilder::new(nodes).build().unwrap().get_async_connection().await.unwrap(),
            );
        }
        let client = redis::Client::open(redis.master("any").url()).unwrap();
        Self::One(client.get_multiplexed_async_connection().await.unwrap())
    }
}

impl ConnectionLike for Raw {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        0
    }
}
