//! Where the replicas of a service are, and which is called next: each in its turn.
//!
//! tonic can balance a fixed list by itself (`Channel::balance_list`), but goes on giving calls to a replica that is dead,
//! and looks no name up again. So here each replica has a channel of its own.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

/// How often names are looked up again: as often a replica that is new is found.
const LOOK: Duration = Duration::from_secs(5);
/// How long a replica that broke is left alone, as long as there are others.
const AVOID: Duration = Duration::from_secs(1);

/// One replica; a client is made of it for each call, which costs nothing.
pub type Replica = InterceptedService<Channel, Headers>;

/// All replicas of one service.
pub struct Replicas {
    names: Vec<String>,
    tls: Option<ClientTlsConfig>,
    headers: Headers,
    known: Mutex<Known>,
}

struct Known {
    replicas: Vec<Place>,
    turn: usize,
    looked_up: Instant,
}

#[derive(Clone)]
struct Place {
    address: SocketAddr,
    /// The name it was found by, which its certificate is for.
    name: String,
    channel: Channel,
    avoid_until: Option<Instant>,
}

/// What goes with each call.
#[derive(Clone)]
pub struct Headers {
    deadline: Duration,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        // The service is told, and stops waiting too; tonic watches it on this side.
        request.set_timeout(self.deadline);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

impl Replicas {
    /// Those at `names`, `host:port` with commas, each of which may stand for several addresses. A token goes over TLS only.
    pub async fn open(names: &str, ca: Option<&str>, token: Option<&str>, deadline: Duration) -> Result<Self, String> {
        let bearer = |token| format!("Bearer {token}").parse().map_err(|_| "the token is none for a header");
        let authorization = token.filter(|_| ca.is_some()).map(bearer).transpose()?;
        let tls = ca.map(|ca| ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)));
        let known = Known { replicas: Vec::new(), turn: 0, looked_up: Instant::now() };
        let replicas = Self {
            names: names.split(',').map(str::to_owned).collect(),
            tls,
            headers: Headers { deadline, authorization },
            known: Mutex::new(known),
        };
        replicas.look_up().await?;
        Ok(replicas)
    }

    /// The replica whose turn it is, and its address.
    pub async fn next(&self) -> (SocketAddr, Replica) {
        if self.is_time_to_look() {
            // Where a name is not found now, what was known goes on.
            let _ = self.look_up().await;
        }
        let mut known = self.known();
        known.turn = known.turn.wrapping_add(1);
        let (turn, now) = (known.turn, Instant::now());
        let good = |place: &&Place| place.avoid_until.is_none_or(|until| until <= now);
        let mut fit: Vec<_> = known.replicas.iter().filter(good).collect();
        if fit.is_empty() {
            // The one that has been left alone the longest.
            fit.extend(known.replicas.iter().min_by_key(|place| place.avoid_until));
        }
        let place = fit[turn % fit.len()];
        (place.address, InterceptedService::new(place.channel.clone(), self.headers.clone()))
    }

    /// Leaves a replica alone for a moment.
    pub fn avoid(&self, address: SocketAddr) {
        let until = Some(Instant::now() + AVOID);
        self.known().replicas.iter_mut().filter(|place| place.address == address).for_each(|place| {
            place.avoid_until = until;
        });
    }

    /// For one caller at a time: the others go on with what is known.
    fn is_time_to_look(&self) -> bool {
        let mut known = self.known();
        let due = known.looked_up.elapsed() > LOOK;
        if due {
            known.looked_up = Instant::now();
        }
        due
    }

    async fn look_up(&self) -> Result<(), String> {
        let mut found = Vec::new();
        for name in &self.names {
            let addresses = tokio::net::lookup_host(name).await.map_err(|error| format!("{name}: {error}"))?;
            found.extend(addresses.map(|address| (address, name)));
        }
        let mut known = self.known();
        let mut replicas = Vec::new();
        for (address, name) in found {
            // One that was known keeps its connection.
            let place = known.replicas.iter().find(|place| place.address == address && place.name == *name).cloned();
            replicas.push(match place {
                Some(place) => place,
                None => Place { address, name: name.clone(), channel: self.channel(address, name)?, avoid_until: None },
            });
        }
        if replicas.is_empty() {
            return Err(format!("{:?} stand for no address", self.names));
        }
        known.replicas = replicas;
        Ok(())
    }

    fn channel(&self, address: SocketAddr, name: &str) -> Result<Channel, String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let uri = |authority: &str| format!("{scheme}://{authority}");
        let origin = uri(name).parse().map_err(|error| format!("{name}: {error}"))?;
        let endpoint = Endpoint::from_shared(uri(&address.to_string())).map_err(|error| error.to_string())?;
        let mut endpoint = endpoint
            .origin(origin)
            .connect_timeout(Duration::from_secs(2))
            // A replica that vanished without a word is noticed.
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(5));
        if let Some(tls) = &self.tls {
            let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
            endpoint = endpoint.tls_config(tls.clone().domain_name(host)).map_err(|error| error.to_string())?;
        }
        // Connects with the first call, and again when the connection is lost.
        Ok(endpoint.connect_lazy())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
