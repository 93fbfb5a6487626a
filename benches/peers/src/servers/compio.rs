//! compio on io_uring: a task and a buffer for each connection.

use std::net::TcpListener;

use compio::buf::{BufResult, IntoInner, IoBuf};
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::TcpStream;

use super::{BUFFER_BYTES, closed};
use crate::Fallible;

pub fn run(listener: TcpListener) -> Fallible<()> {
    let runtime = compio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let listener = compio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            compio::runtime::spawn(echo(stream)).detach();
        }
    })
}

async fn echo(mut stream: TcpStream) {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let BufResult(read, filled) = stream.read(buffer).await;
        let Ok(len @ 1..) = read else {
            break;
        };
        let BufResult(written, slice) = stream.write_all(filled.slice(..len)).await;
        if written.is_err() {
            break;
        }
        buffer = slice.into_inner();
        buffer.clear();
    }
    closed();
}
