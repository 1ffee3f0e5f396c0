-- Moves a broadcast from one state to another, and creates its tasks if the new state needs them.
--
-- KEYS  1 record  2 its open buckets  3 its tasks (stream)  4 due broadcasts (sorted by time)  5 running broadcasts
--       6 the buckets of its recipient list
-- ARGV  1 broadcast  2 the move  3 seconds it is kept from now on  4 the time by the dispatchers' clock, in ms
--       then by move:
--         start   the number of buckets if the audience is every user; else 0. Becomes RUNNING, or waits for its start
--                 time
--         pause   reason, errcode or '', rid, resume time in ms or '', refused field or ''. Reason CANARY only while
--                 there is a canary: the call may be late, after the canary was reached and the broadcast resumed
--         resume  'due' if only because its resume time has passed, by that clock
--         cancel  nothing
--       last: the consumer group of the tasks
-- Reply  moved STATE | wrong STATE (nothing changed) | missing
assert(#KEYS == 6 and #ARGV >= 5, 'move: wrong number of arguments')

local record, open, tasks, due, running, parts = unpack(KEYS)
local id, move, keep, at_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local from = {
  start = { PENDING = true },
  pause = { RUNNING = true },
  resume = { PAUSED = true },
  cancel = { PENDING = true, RUNNING = true, PAUSED = true },
}
local state, not_before, resume = unpack(
  redis.call('HMGET', record, 'state', 'not_before_ms', 'resume_ms'))
if not state then
  redis.call('ZREM', due, id)
  redis.call('SREM', running, id)
  return { 'missing' }
end
local early = move == 'resume' and ARGV[5] == 'due' and tonumber(resume or math.huge) > at_ms
local late = move == 'pause' and ARGV[5] == 'CANARY' and redis.call('HEXISTS', record, 'canary') == 0
if early or late or not from[move][state] then return { 'wrong', state } end

local clock = redis.call('TIME')
local now_ms = string.format('%d', clock[1] * 1000 + math.floor(clock[2] / 1000))
local function become(new)
  state = new
  redis.call('HSET', record, 'state', new)
end
-- Creates one task for each unfinished bucket. They replace the earlier tasks.
local function hand_out()
  redis.call('DEL', tasks)
  redis.call('XGROUP', 'CREATE', tasks, ARGV[#ARGV], '0', 'MKSTREAM')
  for _, bucket in ipairs(redis.call('SMEMBERS', open)) do redis.call('XADD', tasks, '*', 'bucket', bucket) end
  redis.call('SADD', running, id)
end

if move == 'start' then
  for bucket = 0, tonumber(ARGV[5]) - 1 do redis.call('SADD', open, bucket) end
  if not_before and tonumber(not_before) > at_ms then
    redis.call('HSET', record, 'scheduled', 1)
    redis.call('ZADD', due, not_before, id)
  else
    redis.call('ZREM', due, id)
    redis.call('HSET', record, 'started_ms', now_ms)
    become('RUNNING')
    hand_out()
  end
elseif move == 'pause' then
  become('PAUSED')
  redis.call('SREM', running, id)
  redis.call('HSET', record, 'reason', ARGV[5], 'errcode', ARGV[6], 'rid', ARGV[7], 'field', ARGV[9])
  if ARGV[8] ~= '' then
    redis.call('HSET', record, 'resume_ms', ARGV[8])
    redis.call('ZADD', due, ARGV[8], id)
  end
elseif move == 'resume' then
  if redis.call('HGET', record, 'reason') == 'CANARY' then redis.call('HDEL', record, 'canary', 'limit') end
  redis.call('HDEL', record, 'reason', 'errcode', 'rid', 'resume_ms', 'field', 'streak')
  redis.call('ZREM', due, id)
  become('RUNNING')
  hand_out()
else
  redis.call('HDEL', record, 'reason', 'errcode', 'rid', 'resume_ms', 'field')
  redis.call('HSET', record, 'ended_ms', now_ms)
  redis.call('ZREM', due, id)
  become('CANCELLED')
  -- Without open buckets (it was not started, and has no recipients) there is nothing to close, and nothing would
  -- remove the broadcast from the running ones.
  if redis.call('SCARD', open) > 0 then hand_out() end
end
-- All keys get the same expiry, so that none expires before the others.
for _, key in ipairs({ record, open, parts, tasks }) do redis.call('EXPIRE', key, keep) end
return { 'moved', state }
