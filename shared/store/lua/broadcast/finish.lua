-- Removes a task from the stream. A broadcast without open buckets becomes DONE, unless it was cancelled.
--
-- KEYS  1 record  2 its open buckets  3 its tasks (stream)  4 running broadcasts  5 due broadcasts
-- ARGV  1 consumer group  2 id of the task  3 broadcast  4 bucket  5 seconds the record is kept once it is DONE
--       6 done     the bucket is finished
--         leave    no replica needs to continue until the broadcast is resumed. If it was resumed or cancelled already,
--                  the task is put back into the stream: the replica may have seen only the pause, and its task may be
--                  one of those created since
--         pass     another replica should continue
-- Reply  the state of the broadcast, '' if it does not exist; 1 if no bucket is open any more
assert(#KEYS == 5 and #ARGV == 6, 'finish: wrong number of arguments')

local record, open, tasks, running, due = unpack(KEYS)
-- The stream may have been created again since, or may not exist.
local held = redis.call('EXISTS', tasks) == 1 and redis.call('XACK', tasks, ARGV[1], ARGV[2]) == 1
if held then redis.call('XDEL', tasks, ARGV[2]) end
local state = redis.call('HGET', record, 'state')
if not state then
  redis.call('SREM', running, ARGV[3])
  return { '', 0 }
end
local over = 0
if ARGV[6] == 'done' then
  redis.call('SREM', open, ARGV[4])
  if redis.call('SCARD', open) == 0 then
    over = 1
    redis.call('DEL', tasks)
    redis.call('SREM', running, ARGV[3])
    -- A paused broadcast may have been due to resume.
    redis.call('ZREM', due, ARGV[3])
    if state == 'RUNNING' or state == 'PAUSED' then
      state = 'DONE'
      local clock = redis.call('TIME')
      local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
      redis.call('HSET', record, 'state', state, 'ended_ms', string.format('%d', now_ms))
      redis.call('HDEL', record, 'reason', 'errcode', 'rid', 'resume_ms')
      redis.call('EXPIRE', record, ARGV[5])
    end
  end
elseif held and (ARGV[6] == 'pass' or state == 'RUNNING' or state == 'CANCELLED') then
  redis.call('XADD', tasks, '*', 'bucket', ARGV[4])
end
return { state, over }
