package dev.penumbra.cli;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * Lets a run end well when the process is told to: by SIGINT the exit code is then 130, by SIGTERM 143, as the JVM has it.
 * Close it when the run has ended.
 */
final class Interrupt implements AutoCloseable {

    /** Long enough for a step and a checkpoint of a large model. */
    private static final long SAVE_SECONDS = 120;

    private final CountDownLatch ended = new CountDownLatch(1);
    private final Thread hook;

    /** @param cancel asks the run to end; called on another thread */
    Interrupt(Runnable cancel) {
        // The JVM ends when its hooks have: this one waits for the step under way and the checkpoint.
        hook = new Thread(() -> {
            cancel.run();
            try {
                ended.await(SAVE_SECONDS, TimeUnit.SECONDS);
            } catch (InterruptedException shuttingDown) {
                Thread.currentThread().interrupt();
            }
        }, "penumbra-interrupt");
        Runtime.getRuntime().addShutdownHook(hook);
    }

    @Override
    public void close() {
        ended.countDown();
        try {
            Runtime.getRuntime().removeShutdownHook(hook);
        } catch (IllegalStateException shuttingDown) {
            // The hook is running: the process ends with it.
        }
    }
}
