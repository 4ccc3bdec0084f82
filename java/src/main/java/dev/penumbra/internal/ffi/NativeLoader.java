package dev.penumbra.internal.ffi;

import dev.penumbra.backend.NativeLibraryException;
import java.io.File;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.net.URL;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Finds and loads libpenumbra and what it needs, in this order: the file that a property names, the copy bundled in the
 * platform's jar, the folders of {@code java.library.path}. A file that was named is the only one tried.
 *
 * <p>oneDNN, libgomp and the OpenCL loader come from their jars and are loaded first, by path: the dynamic linker then finds
 * them by their names when libpenumbra asks.
 */
final class NativeLoader {

    private static final String PLATFORM = "linux-x86_64";
    private static final String LIBRARY = "libpenumbra.so";
    private static final String BUNDLED = "dev/penumbra/native/" + PLATFORM + "/" + LIBRARY;
    private static final String CUDA_PLATFORM = PLATFORM + "-cuda13";
    private static final String CUDA_LIBRARY = "libpenumbra_cuda.so";
    private static final String CUDA_BUNDLED = "dev/penumbra/native/" + CUDA_PLATFORM + "/" + CUDA_LIBRARY;

    /** In the order of their needs: oneDNN names the other two. */
    private static final List<String> NEEDED = List.of(
            "org/bytedeco/dnnl/" + PLATFORM + "/libgomp.so.1",
            "org/bytedeco/opencl/" + PLATFORM + "/libOpenCL.so.1",
            "org/bytedeco/dnnl/" + PLATFORM + "/libdnnl.so.3");

    private final String version;
    private final @Nullable String explicit;
    private final ClassLoader resources;
    private final NativeCache cache;
    private final String libraryPath;
    private final List<String> tried = new ArrayList<>();

    NativeLoader(String version, @Nullable String explicit, ClassLoader resources, Path cacheRoot, String libraryPath) {
        this.version = version;
        this.explicit = explicit;
        this.resources = resources;
        this.cache = new NativeCache(cacheRoot, version);
        this.libraryPath = libraryPath;
    }

    /** Loads the library and says from where; throws what was tried when nothing worked. */
    Path load() {
        if (explicit != null && !Files.isRegularFile(Path.of(explicit))) {
            throw new NativeLibraryException(
                    "expected the native library at " + explicit + " (" + NativeLibrary.PATH_PROPERTY
                            + "), found no such file");
        }
        loadNeeded();
        Path found = explicit != null
                ? tryFile(Path.of(explicit), this::loadVersion)
                : search(BUNDLED, PLATFORM, LIBRARY, this::loadVersion);
        if (found == null) {
            throw new NativeLibraryException("cannot load the native library; tried: " + String.join("; ", tried));
        }
        return found;
    }

    /**
     * Loads the CUDA library, where {@link #load}ed libpenumbra then finds it by its name; it checks the version itself.
     *
     * @param cudaExplicit the only file to try, or null
     */
    Path loadCuda(@Nullable String cudaExplicit) {
        Path found = cudaExplicit != null
                ? tryFile(Path.of(cudaExplicit), NativeLoader::loadAny)
                : search(CUDA_BUNDLED, CUDA_PLATFORM, CUDA_LIBRARY, NativeLoader::loadAny);
        if (found == null) {
            throw new NativeLibraryException("cannot load the CUDA library; tried: " + String.join("; ", tried));
        }
        return found;
    }

    /** Loads a file; throws or returns why it is not the one wanted, or returns null. */
    private interface Load {
        @Nullable
        String reasonAgainst(Path file);
    }

    private @Nullable Path search(String resource, String classifier, String library, Load load) {
        Path bundled = bundled(resource, classifier);
        Path found = bundled == null ? null : tryFile(bundled, load);
        for (String folder : libraryPath.split(File.pathSeparator)) {
            Path file = Path.of(folder, library);
            if (found == null && !folder.isEmpty() && Files.isRegularFile(file)) {
                found = tryFile(file, load);
            }
        }
        if (found == null) {
            tried.add("no " + library + " that fits in java.library.path (" + libraryPath + ")");
        }
        return found;
    }

    private void loadNeeded() {
        // libgomp reads its environment when it is loaded, so the variable must be there before.
        Environment.setIfAbsent("OMP_PROC_BIND", "close");
        for (String resource : NEEDED) {
            Path file = bundled(resource, PLATFORM);
            if (file != null) {
                try {
                    loadAside(file);
                } catch (UnsatisfiedLinkError e) {
                    tried.add(file + ": " + e.getMessage());
                }
            }
        }
    }

    /** The file of a resource, or null with a line in {@link #tried}. */
    private @Nullable Path bundled(String resource, String classifier) {
        URL url = resources.getResource(resource);
        if (url == null) {
            tried.add("no " + resource + " on the class path (the jars with classifier " + classifier + " bring it)");
            return null;
        }
        try {
            return cache.file(url);
        } catch (IOException e) {
            tried.add(
                    resource + ": cannot be copied to " + cache.root() + " (" + e + "); XDG_CACHE_HOME names another place");
            return null;
        }
    }

    private @Nullable Path tryFile(Path file, Load load) {
        try {
            String reason = load.reasonAgainst(file);
            if (reason == null) {
                return file;
            }
            tried.add(file + ": " + reason);
        } catch (UnsatisfiedLinkError | IllegalArgumentException e) {
            tried.add(file + ": " + e.getMessage());
        }
        return null;
    }

    private @Nullable String loadVersion(Path file) {
        loadAny(file);
        String found = versionOf(file);
        return found.equals(version) ? null : "expected version " + version + ", the version of the jar; found " + found;
    }

    private static @Nullable String loadAny(Path file) {
        System.load(file.toAbsolutePath().toString());
        return null;
    }

    private static String versionOf(Path file) {
        try (Arena call = Arena.ofConfined()) {
            MemorySegment function = SymbolLookup.libraryLookup(file.toAbsolutePath(), call).find("pnb_version")
                    .orElse(null);
            if (function == null) {
                return "a library without pnb_version";
            }
            MemorySegment text = (MemorySegment) Linker.nativeLinker()
                    .downcallHandle(function, FunctionDescriptor.of(ValueLayout.ADDRESS)).invokeExact();
            return text.reinterpret(Long.MAX_VALUE).getString(0);
        } catch (Throwable e) {
            throw new IllegalArgumentException("its version cannot be read: " + e.getMessage(), e);
        }
    }

    /**
     * Loads a file on a thread of its own: libgomp binds the thread that loads it to the first processor, and every thread
     * which that one starts would inherit this.
     */
    private static void loadAside(Path file) {
        Throwable[] failure = new Throwable[1];
        Thread thread = new Thread(() -> System.load(file.toAbsolutePath().toString()), "penumbra-load");
        thread.setUncaughtExceptionHandler((t, e) -> failure[0] = e);
        thread.start();
        boolean interrupted = false;
        while (true) {
            try {
                thread.join();
                break;
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
        if (failure[0] != null) {
            throw new UnsatisfiedLinkError(failure[0].getMessage());
        }
    }
}
