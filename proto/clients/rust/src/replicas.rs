//! The replicas of a service, called round-robin.
//!
//! tonic can balance a fixed list itself (`Channel::balance_list`). But it keeps calling a replica that is dead, and
//! never resolves a name again. So here each replica has its own channel.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

/// How often names are resolved again. A new replica is found within this time.
const LOOK: Duration = Duration::from_secs(5);
/// How long a replica that failed is avoided while there are others.
const AVOID: Duration = Duration::from_secs(1);

/// One replica. A client is created from it for each call, which costs nothing.
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
    /// The name that resolved to the address. The certificate is for this name.
    name: String,
    channel: Channel,
    avoid_until: Option<Instant>,
}

/// Metadata of each call.
#[derive(Clone)]
pub struct Headers {
    deadline: Duration,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        // The service learns the deadline and stops waiting too. tonic enforces it on this side.
        request.set_timeout(self.deadline);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

impl Replicas {
    /// Connects to the replicas at `names`: `host:port`, separated by commas. Each name may resolve to several
    /// addresses. The token is sent over TLS only.
    pub async fn open(names: &str, ca: Option<&str>, token: Option<&str>, deadline: Duration) -> Result<Self, String> {
        let bearer = |token| format!("Bearer {token}").parse().map_err(|_| "the token is not valid in a header");
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

    /// The next replica, and its address.
    pub async fn next(&self) -> (SocketAddr, Replica) {
        if self.is_time_to_look() {
            // If a name cannot be resolved now, the known replicas stay in use.
            let _ = self.look_up().await;
        }
        let mut known = self.known();
        known.turn = known.turn.wrapping_add(1);
        let (turn, now) = (known.turn, Instant::now());
        let good = |place: &&Place| place.avoid_until.is_none_or(|until| until <= now);
        let mut fit: Vec<_> = known.replicas.iter().filter(good).collect();
        if fit.is_empty() {
            // The one that has been avoided the longest.
            fit.extend(known.replicas.iter().min_by_key(|place| place.avoid_until));
        }
        let place = fit[turn % fit.len()];
        (place.address, InterceptedService::new(place.channel.clone(), self.headers.clone()))
    }

    /// Avoids a replica for a moment.
    pub fn avoid(&self, address: SocketAddr) {
        let until = Some(Instant::now() + AVOID);
        self.known().replicas.iter_mut().filter(|place| place.address == address).for_each(|place| {
            place.avoid_until = until;
        });
    }

    /// True for one caller at a time. The others use the known replicas.
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
            // A known replica keeps its connection.
            let place = known.replicas.iter().find(|place| place.address == address && place.name == *name).cloned();
            replicas.push(match place {
                Some(place) => place,
                None => Place { address, name: name.clone(), channel: self.channel(address, name)?, avoid_until: None },
            });
        }
        if replicas.is_empty() {
            return Err(format!("{:?} resolve to no address", self.names));
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
            // Detects a replica that disappeared without closing its connections.
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(5));
        if let Some(tls) = &self.tls {
            let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
            endpoint = endpoint.tls_config(tls.clone().domain_name(host)).map_err(|error| error.to_string())?;
        }
        // Connects at the first call, and again when the connection is lost.
        Ok(endpoint.connect_lazy())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
