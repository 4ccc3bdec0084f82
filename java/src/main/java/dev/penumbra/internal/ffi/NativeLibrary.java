package dev.penumbra.internal.ffi;

import dev.penumbra.backend.NativeLibraryException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Map;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/** A native library of this process, loaded once. */
final class NativeLibrary {

    /** Names a {@code libpenumbra.so} to load instead of the bundled one. */
    static final String PATH_PROPERTY = "penumbra.native.path";

    /** Names a {@code libpenumbra_cuda.so} to load instead of the bundled one. */
    static final String CUDA_PATH_PROPERTY = "penumbra.cuda.path";

    private static final NativeLibrary CPU = new NativeLibrary(NativeLoader::load);
    private static final NativeLibrary CUDA = new NativeLibrary(
            loader -> loader.loadCuda(System.getProperty(CUDA_PATH_PROPERTY)));

    private final Consumer<NativeLoader> loading;
    private @Nullable NativeLibraryException failure;
    private boolean loaded;

    private NativeLibrary(Consumer<NativeLoader> loading) {
        this.loading = loading;
    }

    /** Loads libpenumbra on the first call; a failure is thrown again by every later one. */
    static void load() {
        CPU.loadOnce();
    }

    /** Loads libpenumbra and then the CUDA library beside it. */
    static void loadCuda() {
        CPU.loadOnce();
        CUDA.loadOnce();
    }

    private synchronized void loadOnce() {
        if (loaded) {
            return;
        }
        if (failure != null) {
            throw failure;
        }
        try {
            loading.accept(new NativeLoader(
                    version(),
                    System.getProperty(PATH_PROPERTY),
                    NativeLibrary.class.getClassLoader(),
                    cacheRoot(System.getenv(), System.getProperty("user.home")),
                    System.getProperty("java.library.path", "")));
            loaded = true;
        } catch (NativeLibraryException e) {
            failure = e;
            throw e;
        }
    }

    /** The version of the jar, which Maven writes into a resource. */
    static String version() {
        try (InputStream in = NativeLibrary.class.getResourceAsStream("/dev/penumbra/version.txt")) {
            if (in == null) {
                throw new NativeLibraryException(
                        "expected the resource dev/penumbra/version.txt in Penumbra's jar, found none");
            }
            return new String(in.readAllBytes(), StandardCharsets.UTF_8).strip();
        } catch (IOException e) {
            throw new NativeLibraryException("cannot read dev/penumbra/version.txt from Penumbra's jar: " + e.getMessage(),
                    e);
        }
    }

    /** {@code $XDG_CACHE_HOME/penumbra}, or {@code ~/.cache/penumbra}; a relative XDG_CACHE_HOME is void by its specification. */
    static Path cacheRoot(Map<String, String> environment, String home) {
        String xdg = environment.getOrDefault("XDG_CACHE_HOME", "");
        Path root = xdg.startsWith("/") ? Path.of(xdg) : Path.of(home, ".cache");
        return root.resolve("penumbra");
    }
}
