//! The bare handler once more, with the allocator the dispatcher has: what is left of the ratio without that advantage.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a tool that measures: it fails loudly")]

#[path = "../bare.rs"]
mod bare;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes an address to listen on and the sandbox's base URL.
#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (listen, base_url) = (arguments.next().expect("an address"), arguments.next().expect("a base URL"));
    let _ = rustls::crypto::ring::default_provider().install_default();
    bare::serve(listen.parse().expect("an address"), &base_url).await;
}
