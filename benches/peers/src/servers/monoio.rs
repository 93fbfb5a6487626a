//! monoio on its io_uring driver: a task and a buffer for each connection.

use std::net::TcpListener;

use monoio::IoUringDriver;
use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;

use super::{BUFFER_BYTES, closed};
use crate::Fallible;

pub fn run(listener: TcpListener) -> Fallible<()> {
    let mut runtime = monoio::RuntimeBuilder::<IoUringDriver>::new().build()?;
    runtime.block_on(async {
        let listener = monoio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            monoio::spawn(echo(stream));
        }
    })
}

async fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (read, filled) = stream.read(buffer).await;
        let Ok(len @ 1..) = read else {
            break;
        };
        let (written, slice) = stream.write_all(filled.slice(..len)).await;
        if written.is_err() {
            break;
        }
        buffer = slice.into_inner();
        buffer.resize(BUFFER_BYTES, 0);
    }
    closed();
}
