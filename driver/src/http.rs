//! `/healthz`, `/readyz` and `/metrics` over plain HTTP, on a unix socket or an address: a loopback one, unless the
//! configuration says in so many words that it may be another.

use crate::config::Listen;
use crate::gauges::Gauges;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use identity::Readiness;
use rpc::{Metrics, SocketFile};
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::StreamExt;
use volume::{Error, Result};

/// Long enough for a slow scraper, short enough that idle connections do not pile up.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

#[derive(Clone)]
pub struct Pages {
    pub readiness: Readiness,
    pub metrics: Metrics,
    pub gauges: Gauges,
}

/// Starts to serve; what must be kept while it does (the socket's name), if anything.
pub async fn start(listen: &Listen, pages: Pages) -> Result<Option<SocketFile>> {
    match listen {
        Listen::Off => Ok(None),
        Listen::Tcp(address) => {
            let listener = rpc::bind_tcp(*address)
                .await
                .map_err(|error| Error::io(format!("cannot listen on {address} for metrics"), error))?;
            tokio::spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((connection, _)) => drop(tokio::spawn(serve(connection, pages.clone()))),
                        // Out of descriptors, most likely: the next one may have one again.
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
            });
            Ok(None)
        }
        Listen::Unix(path) => {
            let (mut incoming, file) = rpc::bind(path).await?;
            tokio::spawn(async move {
                while let Some(accepted) = incoming.next().await {
                    match accepted {
                        Ok(connection) => drop(tokio::spawn(serve(connection, pages.clone()))),
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
            });
            Ok(Some(file))
        }
    }
}

async fn serve(connection: impl AsyncRead + AsyncWrite + Unpin, pages: Pages) {
    let answer = service_fn(move |request| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(&request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(connection), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "metrics connection");
    }
}

impl Pages {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
        }
        match request.uri().path() {
            "/healthz" => page(StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/readyz" => match self.readiness.observe().await {
                Ok(()) => page(StatusCode::OK, TEXT, "ready\n".to_owned()),
                Err(error) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{}\n", error.chain())),
            },
            "/metrics" => {
                self.gauges.collect().await;
                page(StatusCode::OK, OPEN_METRICS, self.metrics.encode())
            }
            _ => page(StatusCode::NOT_FOUND, TEXT, "there is /healthz, /readyz and /metrics\n".to_owned()),
        }
    }
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}
