//! A model behind tokio: one thread owns the model and a batch, and tasks send it requests.
//!
//! Models, sessions, batches, streams and tokenizers are `Send`, and work on every thread. A model is used by one thread at a
//! time, since computing needs `&mut`. A token takes milliseconds of computation, so it has no place on a thread that runs
//! tasks.
//!
//! `cargo run -p mlx-models --features architectures,generate,tokenizer --example async_tokio -- path/to/checkpoint`
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows its results")]

use std::collections::HashMap;
use std::error::Error;
use std::{env, thread};

use mlx_models::generate::{Batch, GenerateError, GenerateOptions, RowId};
use mlx_models::text::{BatchPiece, TextBatch, TextError};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm};
use tokio::sync::mpsc;

/// A small model that writes stories for children.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");

struct Request {
    prompt: String,
    max_tokens: usize,
    /// Gets the pieces of the text. Dropping the other end cancels the request.
    pieces: mpsc::UnboundedSender<String>,
}

/// Answers requests until nobody can send one any more. All requests share the steps of one batch. A request that fails
/// ends without another piece, and the others go on.
fn serve(mut model: Box<dyn CausalLm>, tokenizer: &Tokenizer, mut requests: mpsc::Receiver<Request>) {
    let mut batch = TextBatch::new(Batch::new(CacheOptions::default()), tokenizer);
    let mut answers = HashMap::new();
    loop {
        // Without work the thread sleeps until a request comes. Otherwise it takes those that are there.
        let mut next = if batch.is_empty() { requests.blocking_recv() } else { requests.try_recv().ok() };
        if next.is_none() && batch.is_empty() {
            return;
        }
        while let Some(request) = next {
            match add(&mut batch, &mut *model, tokenizer, &request) {
                Ok(row) => _ = answers.insert(row, request.pieces),
                Err(e) => eprintln!("{e}"), // a server would tell the task that asked
            }
            next = requests.try_recv().ok();
        }
        answers.retain(|&row, pieces| !pieces.is_closed() || batch.remove(row).is_err());
        match batch.step(&mut *model) {
            Ok(step) => {
                for BatchPiece { row, piece, finish } in step {
                    if let Some(pieces) = answers.get(&row) {
                        let _ = pieces.send(piece.text);
                    }
                    if finish.is_some() {
                        answers.remove(&row); // Dropping the sender ends the answer.
                    }
                }
            }
            // One sequence failed and has left the batch.
            Err(TextError::Row { row, .. } | TextError::Generate(GenerateError::Row { row, .. })) => {
                answers.remove(&row);
            }
            Err(e) => return eprintln!("{e}"),
        }
    }
}

/// Adds a request to the batch.
fn add(
    batch: &mut TextBatch,
    model: &mut dyn CausalLm,
    tokenizer: &Tokenizer,
    request: &Request,
) -> Result<RowId, Box<dyn Error>> {
    let stop_tokens = tokenizer.stop_tokens();
    let options = GenerateOptions { max_tokens: request.max_tokens, ..GenerateOptions::new(stop_tokens) };
    Ok(batch.add(model, &tokenizer.encode(&request.prompt)?, options)?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let folder = env::args().nth(1).unwrap_or_else(|| DEMO.to_owned());
    let model = mlx_models::load(&folder)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    // Where the queue is full, a task waits until there is room.
    let (sender, receiver) = mpsc::channel(16);
    let owner = thread::spawn(move || serve(model, &tokenizer, receiver));

    let ask = |prompt: &'static str, max_tokens| {
        let sender = sender.clone();
        async move {
            let (pieces, mut text) = mpsc::unbounded_channel();
            sender
                .send(Request { prompt: prompt.to_owned(), max_tokens, pieces })
                .await
                .map_err(|_| "no owner")?;
            let mut answer = prompt.to_owned();
            while let Some(piece) = text.recv().await {
                answer += &piece;
            }
            Ok::<_, Box<dyn Error + Send + Sync>>(answer)
        }
    };
    let (first, second) = tokio::join!(ask("Once upon a time", 20), ask("In a little cottage", 12));
    println!("{}\n{}", first?, second?);
    drop(sender);
    owner.join().map_err(|_| "the thread of the model panicked")?;
    Ok(())
}
