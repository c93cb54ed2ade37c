//! The macro behind the route table.

/// Writes the route table: who may make a call is read off its handler's signature, and the API's
/// description is made of the same rows.
macro_rules! routes {
    ($($listener:ident $method:ident $path:literal $module:ident::$handler:ident;)*) => {
        /// Every route of the service.
        pub const ROUTES: &[Route] = &[$(Route {
            listener: Listener::$listener,
            method: stringify!($method),
            path: $path,
            who: who(&$module::$handler),
            is_keyed: is_keyed(&$module::$handler),
            #[cfg(test)]
            asked: || asked(&$module::$handler),
            mount: |app, index| mount(app, index, stringify!($method), $module::$handler),
        },)*];

        /// What metrics call the routes: as in [`ROUTES`], and at last what has no route.
        pub const ROUTE_NAMES: &[&str] =
            &[$(concat!(stringify!($method), " ", $path),)* "no route"];

        /// The description of every route, as its handler's attributes give it.
        #[derive(utoipa::OpenApi)]
        #[openapi(paths($($module::$handler),*), components(schemas(problem::ProblemBody)))]
        struct Described;
    };
}
