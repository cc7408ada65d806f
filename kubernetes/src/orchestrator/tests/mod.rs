mod adapter;
mod api;
mod index;
