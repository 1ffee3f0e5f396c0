-- Messages of broadcasts.
--
-- The lease of a broadcast's message is named after the broadcast and the user, so that any replica that continues the
-- bucket finds it. Its request begins with a space, which no caller's request id contains. A user is in exactly one
-- place: in `todo`, in `flight`, or ended. An ended user is counted once in the tally under the ending. An ending is
-- "delivered", or a reason with an optional WeChat errcode ("CREDENTIALS_DEAD 41028"), after which the data key that
-- WeChat refused may follow ("MESSAGE_REFUSED 47003 thing3"). The tally counts without the key.

local function message_name(id, openid)
  return ' ' .. id .. ':' .. openid
end

local no_fingerprint = string.rep('\0', 16)

-- "who" as described in leases.lua.
local function message_who(owner, id, openid)
  return owner .. no_fingerprint .. string.char(#openid) .. openid .. string.char(#id + 1) .. ' ' .. id
end

-- The ending of a delivered message that failed later. `why` begins with WeChat's errcode.
local function failed_later(why)
  return 'FAILED_LATER ' .. string.match(why, '^%-?%d+')
end

-- Records the endings of messages. `endings` is a list of openid, ending, openid, ending. Returns the number of
-- messages by ending: a list of ending, number, ending, number.
local function count_endings(tally, undelivered, keep, endings)
  local counts, members = {}, {}
  for i = 1, #endings, 2 do
    local ending = endings[i + 1]
    local counted = string.match(ending, '^%S+ %S+') or ending
    counts[counted] = (counts[counted] or 0) + 1
    if ending ~= 'delivered' then
      members[#members + 1] = 0
      members[#members + 1] = endings[i] .. ' ' .. ending
    end
  end
  local noted = {}
  for ending, count in pairs(counts) do
    redis.call('HINCRBY', tally, ending, count)
    noted[#noted + 1] = ending
    noted[#noted + 1] = count
  end
  -- An ending after the expiry of the part would otherwise create a tally that never expires.
  if #endings > 0 and redis.call('TTL', tally) < 0 then redis.call('EXPIRE', tally, keep) end
  if #members > 0 then
    redis.call('ZADD', undelivered, unpack(members))
    redis.call('EXPIRE', undelivered, keep)
  end
  return noted
end
