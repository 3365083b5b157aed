"""One module a scenario; `ALL` names them in the order in which `all` runs them."""
