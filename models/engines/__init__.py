"""How answers are generated: the plain engine and the fast ones that equal it."""
