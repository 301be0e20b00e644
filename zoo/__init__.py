"""Demo bundles: data, no code. `runtime.bundle.demo_folder` finds them."""
