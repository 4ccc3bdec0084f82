#!/bin/sh
# Prints the home of a JDK 22 or newer, or nothing: JAVA_HOME, the java on the PATH, then where JDKs are installed.
set -eu

# The major version of the java in a JDK's home, or nothing. Its release file tells at once; starting it takes a third of a second.
major_of() {
  major=
  [ ! -r "$1/release" ] || major=$(sed -n 's/^JAVA_VERSION="\([0-9][0-9]*\).*/\1/p' "$1/release")
  [ -n "$major" ] || major=$("$1/bin/java" -version 2>&1 | sed -n '1s/.*version "\([0-9][0-9]*\).*/\1/p')
  echo "$major"
}

path_java=$(command -v java 2>/dev/null || true)
[ -z "$path_java" ] || path_java=$(dirname -- "$(dirname -- "$(readlink -f -- "$path_java")")")
for home in "${JAVA_HOME:-}" "$path_java" /usr/lib/jvm/* /opt/java/* "$HOME"/.sdkman/candidates/java/*; do
  [ -n "$home" ] && [ -x "$home/bin/java" ] || continue
  major=$(major_of "$home")
  if [ -n "$major" ] && [ "$major" -ge 22 ]; then
    echo "$home"
    exit
  fi
done
