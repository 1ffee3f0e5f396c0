//! The bare handler with the dispatcher's allocator. It shows the ratio without the advantage of that allocator.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measuring tool, which may panic")]

#[path = "../bare.rs"]
mod bare;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Arguments: the address to listen on and the sandbox's base URL.
#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (listen, base_url) = (arguments.next().expect("an address"), arguments.next().expect("a base URL"));
    let _ = rustls::crypto::ring::default_provider().install_default();
    bare::serve(listen.parse().expect("an address"), &base_url).await;
}
