package dev.penumbra.backend;

import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import org.junit.jupiter.api.extension.ConditionEvaluationResult;
import org.junit.jupiter.api.extension.ExecutionCondition;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.extension.ExtensionContext;

/** The tests of a class run on the first GPU; where it cannot be used they are skipped with the reason. */
@Target(ElementType.TYPE)
@Retention(RetentionPolicy.RUNTIME)
@ExtendWith(NeedsGpu.Condition.class)
public @interface NeedsGpu {

    final class Condition implements ExecutionCondition {

        private static final ConditionEvaluationResult RESULT = evaluate();

        private static ConditionEvaluationResult evaluate() {
            try (Backend backend = Backends.open(Device.cuda(0), 0, true)) {
                return ConditionEvaluationResult.enabled(backend.describe());
            } catch (BackendException e) {
                if (e.status() == BackendException.Status.UNAVAILABLE) {
                    return ConditionEvaluationResult.disabled("needs a GPU: " + e.getMessage());
                }
                throw e;
            }
        }

        @Override
        public ConditionEvaluationResult evaluateExecutionCondition(ExtensionContext context) {
            return RESULT;
        }
    }
}
