-- Each landed message that dbt has taken is in exactly one of user_logins and rejected_messages.
select count(*) as without_one_outcome
from {{ source('raw', 'sqs_messages') }} as messages
left join {{ ref('user_logins') }} as accepted on messages.message_id = accepted.message_id
left join {{ ref('rejected_messages') }} as rejected on messages.message_id = rejected.message_id
where
    messages.load_id <= (select coalesce(max(load_id), 0) from {{ ref('int_messages__masked') }})
    and (accepted.message_id is null) = (rejected.message_id is null)
having count(*) > 0
