//! Tells streams to end when their connection is old or the service stops.

use std::future::Future;

use tokio_util::sync::CancellationToken;

/// Signals that streams of a connection must end, because the connection is old or the service stops. It is in the
/// extensions of each request.
#[derive(Debug, Clone, Default)]
pub struct ConnectionClosing(pub(super) CancellationToken);

impl ConnectionClosing {
    /// Returns the signal of a request. It never fires if the request did not arrive over a connection.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// Waits until streams must end.
    pub fn wait(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.clone().cancelled_owned()
    }
}
