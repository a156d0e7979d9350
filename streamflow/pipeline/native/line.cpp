// Samples on their way through compiled stages, outside the interpreter.
//
// Theory of operation. A stage holds the samples that it has forwarded and not yet run backward, and
// chooses its next action as schedule.py does. Counters are the links: a stage may run the next
// sample when the stage before has forwarded it, and the next gradient when the stage behind has run
// it backward. Values lie in rings, one slot per sample between its forward and its backward; the
// schedule itself bounds how many these are, so no counter of free slots is needed:
//
//     stage before            stage                    stage behind
//     forwarded   ------->    forwarded   ------->
//                 <-------    backwarded  <-------     backwarded
//
// One thread runs all stages, the last ones first; or each stage has a thread, the last one that of
// the caller. Who waits spins for a moment, since a neighbour is usually about to finish, and then
// blocks. A call ends when every stage is at rest.

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

using Program = bool (*)(char* const* held, char* const* rows, char* const* outputs, char* memory);
using Flush = void (*)(char* const* held, char* memory);

constexpr long LONGEST_MESSAGE = 1000;
constexpr int SPINS = 4000;

static inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Memory in which one place follows another: rows of a call, or the slots of a ring.
struct Places {
    char* first;
    long size;
    char* at(long index) const { return first + index * size; }
};

extern "C" {

// What a stage is made of; the same for all calls.
struct StageOptions {
    Program learn;    // the backward and update; in the last stage all of a learned sample
    Program forward;  // null where all samples are learned
    Flush flush;
    char* memory;
    long lag;
    long is_greedy;
    long is_newest;  // run backward with the newest sample's input
    long num_inputs;
    const Places* inputs;  // ring of `num_slots`
    long num_noises;
    const Places* noises;  // ring of the random numbers that a forward takes behind its inputs
    long num_snapshots;
    const Places* snapshots;  // ring of what a forward writes, as it was before
    const long* written;      // which of the held these are
    long num_gradients;
    const Places* gradients;  // ring of what comes from the stage behind
    long* is_empty;           // ring: whether nothing comes
    long num_slots;
};

// What a stage works on during one call.
struct StageCall {
    char* const* learn_held;
    char* const* forward_held;
    const Places* noises;
    Places factors;  // by updates made in this call
    long made;       // out: updates
    long skipped;    // out: samples passed over since something was not finite
};

struct Call {
    StageCall* stages;
    long count;
    const Places* inputs;
    const Places* labels;  // targets and weights
    long num_labels;
    const Places* outputs;
    long num_outputs;
    const char* is_learned;
    long* steps;   // out: updates that stage 0 had made in this call before each sample
    long failed;   // out: the stage that raised, or -1
    long number;   // out: the sample at which it did, counted from the call's first
    char message[LONGEST_MESSAGE];
};

}

struct Stage {
    StageOptions options;
    alignas(128) std::atomic<long> forwarded{0};
    std::atomic<long> backwarded{0};
    std::atomic<bool> sleeps{false};
    alignas(128) std::mutex mutex;
    std::condition_variable woken;
    std::thread thread;
    std::vector<char*> rows, outputs;
};

enum class Action { FORWARD, BACKWARD, WAIT, REST };

class Line {
public:
    Line(const StageOptions* options, long count) : stages_(count) {
        for (long s = 0; s < count; ++s) {
            stages_[s] = std::make_unique<Stage>();
            stages_[s]->options = options[s];
        }
    }

    ~Line() {
        ends_ = true;
        for (auto& stage : stages_) wake(*stage);
        for (auto& stage : stages_)
            if (stage->thread.joinable()) stage->thread.join();
    }

    // Run samples until every stage is at rest.
    void run(Call& call, bool threaded) {
        call_ = &call;
        call.failed = -1;
        fails_ = false;
        submitted_ += call.count;
        since_drain_ += call.count;
        const long last = size() - 1;
        if (!last) {
            run_alone();
            flush(0);
        } else if (threaded && start_threads()) {
            busy_.store(last);
            turn_.fetch_add(1);
            for (long s = 0; s < last; ++s) wake(*stages_[s]);
            run_stage(last);
            await_others();
        } else {
            run_all();
            for (long s = 0; s <= last; ++s) flush(s);
        }
        base_ = submitted_;
    }

    // Begin with so many samples held by each stage; number 0 is the oldest of the first.
    void place(const long* held) {
        submitted_ = base_ = since_drain_ = held[0];
        for (long s = 0; s < size(); ++s) {
            stages_[s]->forwarded = held[0];
            stages_[s]->backwarded = held[0] - held[s];
        }
    }

    long forwarded(long s) const { return stages_[s]->forwarded; }
    long backwarded(long s) const { return stages_[s]->backwarded; }

private:
    long size() const { return static_cast<long>(stages_.size()); }

    Action next(long s) const {
        const auto& stage = *stages_[s];
        const auto& options = stage.options;
        const long forwarded = stage.forwarded.load(std::memory_order_relaxed);
        const long backwarded = stage.backwarded.load(std::memory_order_relaxed);
        const long held = forwarded - backwarded;
        if (forwarded == submitted_ && held == rest(options)) return Action::REST;
        if (held && (options.is_greedy || held > options.lag) &&
            stages_[s + 1]->backwarded.load(std::memory_order_acquire) > backwarded)
            return Action::BACKWARD;
        const long arrived =
            s ? stages_[s - 1]->forwarded.load(std::memory_order_acquire) : submitted_;
        if (arrived > forwarded && held <= options.lag) return Action::FORWARD;
        return Action::WAIT;
    }

    // How many samples a stage holds when it has nothing left to do.
    long rest(const StageOptions& options) const {
        if (options.is_greedy) return 0;
        return since_drain_ < options.lag ? since_drain_ : options.lag;
    }

    void run_all() {
        const long last = size() - 1;
        for (long s = last; s >= 0;) {
            const Action action = next(s);
            if (action == Action::FORWARD || action == Action::BACKWARD) {
                if (!perform(s, action)) return;
                s = last;
            } else {
                --s;
            }
        }
    }

    void run_stage(long s) {
        int spins = 0;
        while (!fails_.load(std::memory_order_relaxed)) {
            const Action action = next(s);
            if (action == Action::REST) break;
            if (action != Action::WAIT) {
                if (!perform(s, action)) break;
                publish();
                if (s) wake(*stages_[s - 1]);
                if (s + 1 < size()) wake(*stages_[s + 1]);
                spins = 0;
            } else if (++spins < SPINS) {
                pause_briefly();
            } else {
                sleep(*stages_[s], [&] { return fails_ || next(s) != Action::WAIT; });
                spins = 0;
            }
        }
        flush(s);
    }

    // A single stage has nobody to wait for. Rows of a forward are the first of those behind factors.
    void run_alone() {
        auto& stage = *stages_[0];
        auto& own = call_->stages[0];
        std::vector<char*> rows{own.factors.first}, outputs;
        std::vector<Places> places(call_->inputs, call_->inputs + stage.options.num_inputs);
        places.insert(places.end(), own.noises, own.noises + stage.options.num_noises);
        places.insert(places.end(), call_->labels, call_->labels + call_->num_labels);
        for (const auto& place : places) rows.push_back(place.first);
        for (long i = 0; i < call_->num_outputs; ++i) outputs.push_back(call_->outputs[i].first);
        const auto& options = stage.options;
        long number = stage.forwarded;
        guarded(0, Action::FORWARD, [&] {
            for (long index = 0; index < call_->count; ++index) {
                call_->steps[index] = own.made;
                rows[0] = own.factors.at(own.made);
                if (!call_->is_learned[index])
                    options.forward(own.forward_held, rows.data() + 1, outputs.data(),
                                    options.memory);
                else if (options.learn(own.learn_held, rows.data(), outputs.data(), options.memory))
                    ++own.made;
                else
                    ++own.skipped;
                stage.forwarded.store(++number, std::memory_order_relaxed);
                for (std::size_t i = 0; i < places.size(); ++i) rows[i + 1] += places[i].size;
                for (std::size_t i = 0; i < outputs.size(); ++i)
                    outputs[i] += call_->outputs[i].size;
            }
        });
        stage.backwarded = number;
    }

    bool perform(long s, Action action) {
        return guarded(s, action, [&] {
            if (action == Action::BACKWARD) backward(s);
            else if (s + 1 == size()) finish(s);
            else forward(s);
        });
    }

    // Says whether nothing was raised.
    template <typename Work>
    bool guarded(long s, Action action, const Work& work) {
        try {
            work();
            return true;
        } catch (const std::exception& error) {
            fail(s, action, error.what());
        } catch (...) {
            fail(s, action, "something that is no exception of the standard library");
        }
        return false;
    }

    void fail(long s, Action action, const char* what) {
        const std::lock_guard<std::mutex> lock(failing_);
        if (call_->failed < 0) {
            const auto& stage = *stages_[s];
            call_->failed = s;
            call_->number = action == Action::BACKWARD ? stage.backwarded : stage.forwarded;
            call_->number -= base_;
            std::strncpy(call_->message, what, LONGEST_MESSAGE - 1);
        }
        fails_ = true;
        publish();
        for (auto& stage : stages_) wake(*stage);
    }

    // Rows of a sample's inputs and random numbers: in the call, or in the stage's rings.
    void push_inputs(Stage& stage, long s, long number) {
        const auto& options = stage.options;
        const bool in_ring = s || options.lag;
        const Places* const places = in_ring ? options.inputs : call_->inputs;
        const long index = in_ring ? number % options.num_slots : number - base_;
        for (long i = 0; i < options.num_inputs; ++i) stage.rows.push_back(places[i].at(index));
        const bool is_last = s + 1 == size();
        const Places* const noises = is_last ? call_->stages[s].noises : options.noises;
        const long place = is_last ? number - base_ : number % options.num_slots;
        for (long i = 0; i < options.num_noises; ++i) stage.rows.push_back(noises[i].at(place));
    }

    void keep(Stage& stage, long s, long number) {
        const auto& options = stage.options;
        const long slot = number % options.num_slots;
        if (!s && options.lag)
            for (long i = 0; i < options.num_inputs; ++i)
                std::memcpy(options.inputs[i].at(slot), call_->inputs[i].at(number - base_),
                            options.inputs[i].size);
        for (long i = 0; i < options.num_noises; ++i)
            std::memcpy(options.noises[i].at(slot), call_->stages[s].noises[i].at(number - base_),
                        options.noises[i].size);
        char* const* held = call_->stages[s].forward_held;
        for (long i = 0; i < options.num_snapshots; ++i)
            std::memcpy(options.snapshots[i].at(slot), held[options.written[i]],
                        options.snapshots[i].size);
    }

    void forward(long s) {
        auto& stage = *stages_[s];
        const long number = stage.forwarded.load(std::memory_order_relaxed);
        if (!s) call_->steps[number - base_] = call_->stages[0].made;
        keep(stage, s, number);
        stage.rows.clear();
        stage.outputs.clear();
        push_inputs(stage, s, number);
        const auto& behind = stages_[s + 1]->options;
        for (long i = 0; i < behind.num_inputs; ++i)
            stage.outputs.push_back(behind.inputs[i].at(number % behind.num_slots));
        stage.options.forward(call_->stages[s].forward_held, stage.rows.data(),
                              stage.outputs.data(), stage.options.memory);
        stage.forwarded.store(number + 1, std::memory_order_release);
    }

    // Forward, backward and update of the last of several stages.
    void finish(long s) {
        auto& stage = *stages_[s];
        auto& own = call_->stages[s];
        const long number = stage.forwarded.load(std::memory_order_relaxed);
        const long index = number - base_;
        const bool is_learned = call_->is_learned[index];
        stage.rows.clear();
        stage.outputs.clear();
        if (is_learned) stage.rows.push_back(own.factors.at(own.made));
        push_inputs(stage, s, number);
        for (long i = 0; i < call_->num_outputs; ++i)
            stage.outputs.push_back(call_->outputs[i].at(index));
        if (is_learned) {
            for (long i = 0; i < call_->num_labels; ++i)
                stage.rows.push_back(call_->labels[i].at(index));
            push_gradients(s, number);
            const bool is_finite = stage.options.learn(own.learn_held, stage.rows.data(),
                                                       stage.outputs.data(), stage.options.memory);
            count(s, number, is_finite);
        } else {
            stage.options.forward(own.forward_held, stage.rows.data(), stage.outputs.data(),
                                  stage.options.memory);
            mark_empty(s, number, true);
        }
        stage.forwarded.store(number + 1, std::memory_order_relaxed);
        stage.backwarded.store(number + 1, std::memory_order_release);
    }

    void backward(long s) {
        auto& stage = *stages_[s];
        const auto& options = stage.options;
        auto& own = call_->stages[s];
        const long number = stage.backwarded.load(std::memory_order_relaxed);
        const long slot = number % options.num_slots;
        if (options.is_empty[slot]) {
            mark_empty(s, number, true);
        } else {
            const long newest = stage.forwarded.load(std::memory_order_relaxed) - 1;
            const long source = options.is_newest ? newest : number;
            stage.rows.clear();
            stage.outputs.clear();
            stage.rows.push_back(own.factors.at(own.made));
            push_inputs(stage, s, source);
            for (long i = 0; i < options.num_snapshots; ++i)
                stage.rows.push_back(options.snapshots[i].at(source % options.num_slots));
            for (long i = 0; i < options.num_gradients; ++i)
                stage.rows.push_back(options.gradients[i].at(slot));
            push_gradients(s, number);
            count(s, number, options.learn(own.learn_held, stage.rows.data(),
                                           stage.outputs.data(), options.memory));
        }
        stage.backwarded.store(number + 1, std::memory_order_release);
    }

    // Where the gradient of a sample's inputs goes: into the ring of the stage before.
    void push_gradients(long s, long number) {
        if (!s) return;
        const auto& before = stages_[s - 1]->options;
        for (long i = 0; i < before.num_gradients; ++i)
            stages_[s]->outputs.push_back(before.gradients[i].at(number % before.num_slots));
    }

    void count(long s, long number, bool is_finite) {
        auto& own = call_->stages[s];
        if (is_finite) ++own.made;
        else ++own.skipped;
        mark_empty(s, number, !is_finite);
    }

    void mark_empty(long s, long number, bool is_empty) {
        if (!s) return;
        const auto& before = stages_[s - 1]->options;
        before.is_empty[number % before.num_slots] = is_empty;
    }

    void flush(long s) {
        if (!fails_) stages_[s]->options.flush(call_->stages[s].learn_held, stages_[s]->options.memory);
    }

    // Says whether there is a thread for every stage but the last.
    bool start_threads() {
        try {
            for (long s = 0; s + 1 < size(); ++s)
                if (!stages_[s]->thread.joinable())
                    stages_[s]->thread =
                        std::thread([this, s, turn = turn_.load()] { serve(s, turn); });
            return true;
        } catch (const std::system_error&) {
            return false;
        }
    }

    void serve(long s, long turn) {
        auto& stage = *stages_[s];
        while (true) {
            sleep(stage, [&] { return ends_ || turn_ != turn; });
            if (ends_) return;
            turn = turn_;
            run_stage(s);
            busy_.fetch_sub(1);
            publish();
            wake(*stages_[size() - 1]);
        }
    }

    void await_others() {
        for (int spins = 0; busy_.load() && spins < SPINS; ++spins) pause_briefly();
        sleep(*stages_[size() - 1], [&] { return busy_ == 0; });
    }

    // Before a look at who sleeps: either they see what has been written, or they are seen.
    static void publish() { std::atomic_thread_fence(std::memory_order_seq_cst); }

    static void wake(Stage& stage) {
        if (!stage.sleeps.load()) return;
        const std::lock_guard<std::mutex> lock(stage.mutex);
        stage.woken.notify_one();
    }

    template <typename Predicate>
    static void sleep(Stage& stage, const Predicate& may_go_on) {
        std::unique_lock<std::mutex> lock(stage.mutex);
        stage.sleeps = true;
        publish();
        while (!may_go_on()) stage.woken.wait(lock);
        stage.sleeps = false;
    }

    std::vector<std::unique_ptr<Stage>> stages_;
    Call* call_ = nullptr;
    long submitted_ = 0, base_ = 0, since_drain_ = 0;
    std::atomic<long> turn_{0}, busy_{0};
    std::atomic<bool> ends_{false}, fails_{false};
    std::mutex failing_;
};

extern "C" {

// Null where there is no memory.
void* line_open(const StageOptions* stages, long count) {
    try {
        return new Line(stages, count);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void line_close(void* line) { delete static_cast<Line*>(line); }

// Where threads cannot be started, one runs all stages.
void line_run(void* line, Call* call, bool threaded) {
    static_cast<Line*>(line)->run(*call, threaded);
}

void line_place(void* line, const long* held) { static_cast<Line*>(line)->place(held); }

long line_forwarded(void* line, long stage) { return static_cast<Line*>(line)->forwarded(stage); }

long line_backwarded(void* line, long stage) { return static_cast<Line*>(line)->backwarded(stage); }

}
