//! The board's requests: posts, the page, its events and the export, each within limits.

use crate::post::{Join, Post};
use crate::store::{Refusal, Store};
use crate::view;
use anyhow::{Context, Result};
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use governor::{Quota, RateLimiter, state::keyed::HashMapStateStore};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;

/// Largest post; 200 pairs of long settings take less.
const MOST_BYTES: usize = 256 << 10;
/// Requests that write, by address: so many at once, and so many a second after them. A hub's kernels share one
/// address, so a class that posts at once has to fit in.
const AT_ONCE: NonZeroU32 = NonZeroU32::new(300).expect("not 0");
const A_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("not 0");
/// Pages that are open at once.
const WATCHERS: usize = 200;
/// How often the file is asked whether it has changed.
const LOOK: Duration = Duration::from_millis(200);

/// What all requests share.
struct Shared {
    store: Mutex<Store>,
    profiles: Vec<String>,
    limits: RateLimiter<IpAddr, HashMapStateStore<IpAddr>, governor::clock::MonotonicClock>,
    watchers: Arc<Semaphore>,
    /// The page's picture of the board, as JSON.
    picture: watch::Receiver<Arc<str>>,
}

/// Answers requests until the process ends.
pub async fn serve(listener: tokio::net::TcpListener, store: Store, file: &Path, profiles: Vec<String>) -> Result<()> {
    let shared = Arc::new(Shared {
        store: Mutex::new(store),
        profiles,
        limits: RateLimiter::hashmap_with_clock(
            Quota::per_second(A_SECOND).allow_burst(AT_ONCE),
            governor::clock::MonotonicClock,
        ),
        watchers: Arc::new(Semaphore::new(WATCHERS)),
        picture: keep_painting(Store::open(file)?)?,
    });
    let forget = Arc::clone(&shared);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(60)).await;
            forget.limits.retain_recent();
        }
    });
    let writes = Router::new()
        .route("/join", post(join))
        .route("/post", post(posted))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), limit))
        .layer(DefaultBodyLimit::max(MOST_BYTES));
    let app = Router::new()
        .route("/", get(|| text("text/html; charset=utf-8", include_str!("../page/index.html"))))
        .route("/board.css", get(|| text("text/css", include_str!("../page/board.css"))))
        .route("/board.js", get(|| text("text/javascript", include_str!("../page/board.js"))))
        .route("/events", get(events))
        .route("/board.csv", get(export))
        .merge(writes)
        .layer(middleware::map_response(secure))
        .with_state(shared);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await.context("the server ended")
}

/// A thread that draws the page again when any process has changed the file.
fn keep_painting(store: Store) -> Result<watch::Receiver<Arc<str>>> {
    let paint = |store: &Store| -> Result<Arc<str>> { Ok(serde_json::to_string(&view::board(&store.all()?))?.into()) };
    let mut version = store.version()?;
    let (sender, receiver) = watch::channel(paint(&store)?);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            std::thread::sleep(LOOK);
            let Ok(now) = store.version() else { continue };
            if now != version
                && let Ok(picture) = paint(&store)
            {
                version = now;
                sender.send_replace(picture);
            }
        }
    });
    Ok(receiver)
}

async fn text(kind: &'static str, content: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind)], content)
}

/// The page may load and run only what this server sends.
async fn secure(mut response: Response) -> Response {
    let headers = [
        (
            "content-security-policy",
            "default-src 'self'; img-src data:; frame-ancestors 'self'; base-uri 'none'; form-action 'none'",
        ),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// Refuses a flood from one address.
async fn limit(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    match shared.limits.check_key(&from.ip()) {
        Ok(()) => next.run(request).await,
        Err(_) => error(StatusCode::TOO_MANY_REQUESTS, "too many posts at once; wait a minute and run the cell again"),
    }
}

fn error(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({"error": why}))).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Refusal::Person(why) => error(StatusCode::FORBIDDEN, &why),
            Refusal::File(failure) => {
                eprintln!("the file of the board: {failure:#}");
                error(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "its file can't be written; tell your instructor, and post again when it can",
                )
            }
        }
    }
}

/// What a request asks, or why it is none.
fn asked<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Box<Response>> {
    body.map(|Json(asked)| asked).map_err(|why| {
        let text: String = why.body_text().chars().take(300).collect();
        Box::new(error(why.status(), &format!("this is no post of kdlab: {text}")))
    })
}

async fn join(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: Result<Json<Join>, JsonRejection>,
) -> Response {
    let join = match asked(body) {
        Ok(join) => join,
        Err(response) => return *response,
    };
    shared
        .write(move |store, _| {
            join.check().map_err(Refusal::Person)?;
            Ok(json!({"seeds": store.join(&join, &from.ip().to_string())?}))
        })
        .await
}

async fn posted(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: Result<Json<Post>, JsonRejection>,
) -> Response {
    let post = match asked(body) {
        Ok(post) => post,
        Err(response) => return *response,
    };
    shared
        .write(move |store, profiles| {
            post.check(profiles).map_err(Refusal::Person)?;
            let kept = store.post(&post, &from.ip().to_string())?;
            let settings: BTreeSet<String> = post.pairs.iter().map(|pair| pair.setting.to_string()).collect();
            let rows = view::found(&store.all()?, kept.study, &settings);
            Ok(json!({"new": kept.new, "differing": kept.differing, "rows": rows}))
        })
        .await
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the file on a thread that may wait for the disk.
    async fn write(
        self: Arc<Self>,
        change: impl FnOnce(&mut Store, &[String]) -> Result<Value, Refusal> + Send + 'static,
    ) -> Response {
        let done = tokio::task::spawn_blocking(move || change(&mut self.store(), &self.profiles)).await;
        match done {
            Ok(Ok(answer)) => Json(answer).into_response(),
            Ok(Err(refusal)) => refusal.into_response(),
            Err(panicked) => Refusal::File(panicked.into()).into_response(),
        }
    }
}

/// The picture of the board now, and again whenever it changes.
async fn events(State(shared): State<Arc<Shared>>) -> Response {
    let Ok(permit) = Arc::clone(&shared.watchers).try_acquire_owned() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open; close some");
    };
    let stream = WatchStream::new(shared.picture.clone()).map(move |picture| {
        let _held: &OwnedSemaphorePermit = &permit;
        Ok::<_, Infallible>(Event::default().data(picture))
    });
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

async fn export(State(shared): State<Arc<Shared>>) -> Response {
    let made = tokio::task::spawn_blocking(move || view::csv(&shared.store().all()?)).await;
    match made.map_err(anyhow::Error::from).and_then(|made| made) {
        Ok(csv) => {
            let kind = [
                (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
                (header::CONTENT_DISPOSITION, "attachment; filename=board.csv"),
            ];
            (kind, Bytes::from(csv)).into_response()
        }
        Err(failure) => Refusal::File(failure).into_response(),
    }
}
